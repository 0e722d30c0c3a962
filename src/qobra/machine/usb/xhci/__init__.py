"""The extensible host controller interface (xHCI, revision 1.0, with what 1.1 made clearer): USB of every speed."""
