"""The studio: jobs, files, command line and (in `app.ui`) the page."""
