"""ROS 2 nodes around Edge SDK: prompts in, tokens, text and motion out; sensors in, a policy's commands out."""
