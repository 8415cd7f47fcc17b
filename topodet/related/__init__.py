"""The neighboring papers, each in a folder of its own; the core of topodet needs none of them."""
