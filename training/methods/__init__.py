"""The methods: what is trained, what a batch is, and what the loss is."""
