"""Models: networks by name, with the head that the data asks for. They know nothing of distribution."""
