"""The dotted class path of an object, as configurations name classes."""


def class_path(component: object) -> str:
    """Module and qualified name of an object's class, such as "tasks.joint.JointGeneration"."""
    return f"{type(component).__module__}.{type(component).__qualname__}"
