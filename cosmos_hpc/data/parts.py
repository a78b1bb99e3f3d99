"""The parts of a data set."""

#: Parts, and what the files of each are called in NVIDIA's guide and in the Bridge layout.
FOLDERS = {"train": "train", "validation": "val", "test": "test"}
