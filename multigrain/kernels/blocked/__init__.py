"""The closed form in blocks of matrix products, on any device."""
