"""Meta-World: fifty tasks of a Sawyer arm in MuJoCo, from the package `metaworld` (an extra of this one)."""
