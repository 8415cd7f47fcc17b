"""Data for the quickstart and checks of detection data: `digits` writes small real data sets, `coco` checks a file."""
