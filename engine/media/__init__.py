"""Reading and writing of images and videos, resizing, contact sheets and charts. Knows nothing of datasets."""
