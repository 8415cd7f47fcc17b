"""Data for the quickstart and checks of detection data: `digits` writes small real datasets, `coco` checks a file."""
