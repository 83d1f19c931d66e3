"""What memory and a device's sensors show while a profile is taken."""
