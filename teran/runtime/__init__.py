"""What runs inside Triton's model processes, and the few names that those around them need too."""
