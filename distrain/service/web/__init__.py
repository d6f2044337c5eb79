"""Shows the queue, the devices and the runs of one folder in a browser, and gives them to programs by REST."""
