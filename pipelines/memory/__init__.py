"""What a picture needs of this machine, what is free, and the plan that makes it fit."""
