"""The gateway, through which external programs call handlers. It runs in the console's process."""
