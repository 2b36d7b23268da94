"""What the device's and the fleet's pages share: the server that runs them, and htmx (`static/`, 0BSD)."""
