"""What a release is: identity, versions, channels, records. Pure values, no I/O."""
