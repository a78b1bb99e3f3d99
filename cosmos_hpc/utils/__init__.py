"""What any room uses: files, settings, progress, imports."""
