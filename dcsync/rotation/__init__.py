"""Service: rotates the central fernet keys when due and distributes them to the subclouds in waves."""
