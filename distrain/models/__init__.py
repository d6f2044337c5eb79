"""Networks by name, with a head for the classes of the data, independent of distribution."""
