"""A ROS 2 node around Edge SDK: a prompt comes in, tokens, text and motion go out."""
