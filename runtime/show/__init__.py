"""What pruning does to a video, drawn: which patches are merged, and which of them a question keeps."""
