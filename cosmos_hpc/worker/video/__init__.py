"""From video files to clips of pixels: PyAV, in processes that may die."""
