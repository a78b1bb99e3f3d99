"""What any package uses: files, settings, progress, imports."""
