"""What strangers may send, by its kind: hubs, folders, stores, strings, processes, limits."""
