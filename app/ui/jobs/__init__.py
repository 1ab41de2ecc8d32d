"""The Jobs panel: what runs, waits and has ended, from every tab."""
