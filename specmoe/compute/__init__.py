"""Expert arithmetic: how an expert is multiplied, by device, dtype and number of rows."""
