"""High Definition Audio (Intel's specification, revision 1.0a): the controller, its link and codecs."""
