"""The command line tools; a package so that tests import these, and not the `tools` that Detectron2 installs."""
