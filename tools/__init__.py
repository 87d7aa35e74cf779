"""What builds and checks the project itself; nothing here is installed."""
