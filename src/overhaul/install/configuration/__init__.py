"""The device's own configuration across an update: compared, merged, and laid over what the new release ships."""
