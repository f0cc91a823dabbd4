"""The one error that the data package raises for wrong data."""


class DataError(ValueError):
    """The data are not what they must be. The message names the file."""
