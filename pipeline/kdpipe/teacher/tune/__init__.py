"""Finding the fastest way to compute each layer on a device."""
