"""NVM Express: a controller with queues in guest memory, and one namespace (NVM Express 1.4)."""
