"""The engines below the one seam, `Backend`."""
