"""One slide through a loaded bundle: encoding, the cascade and the verdict."""
