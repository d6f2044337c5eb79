"""The pages that a browser shows: a router for each subject, rendered on the server."""
