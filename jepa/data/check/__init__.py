"""The engine of `jepa data check`: what every sample looks like, and what that says of a data set as a whole."""
