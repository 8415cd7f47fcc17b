"""Data for the quickstart and checks of data for detection: `digits` writes small real sets, `coco` checks a file."""
