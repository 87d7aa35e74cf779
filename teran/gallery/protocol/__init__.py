"""What a request to a gallery may say, and how it is answered."""
