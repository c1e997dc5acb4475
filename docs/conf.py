"""The documentation as a site: `sphinx-build -W --keep-going docs site`, so that warnings are errors."""

from importlib.metadata import version as installed

project, author = "ai-wam", "the authors of ai-wam"
release = installed("ai-wam")

extensions = ["myst_parser", "sphinx.ext.napoleon", "sphinx_copybutton", "autoapi.extension"]
root_doc = "index"
exclude_patterns = ["README.md"]  # the index includes it
default_role = "py:obj"  # a link where the name is documented, else only its letters
html_theme = "furo"
html_title = f"ai-wam {release.partition('+')[0]}"
html_show_copyright = False
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .c, .c1"  # comments behind commands

myst_heading_anchors = 4
napoleon_custom_sections = [("Metrics", "params_style")]

# Pages of the reference come from the sources, which are read and not imported.
autoapi_dirs = [f"../{name}" for name in ("ai_wam", "backbones", "tasks", "datamodules", "benchmarks")]
autoapi_root = "reference"
autoapi_options = ["members", "show-inheritance", "show-module-summary"]
autoapi_python_class_content = "both"
autoapi_member_order = "bysource"
autoapi_add_toctree_entry = False
autoapi_ignore = ["*/ai_wam/cli/parsing.py"]  # classes of jsonargparse with defaults that do not parse
suppress_warnings = [
    "autoapi.python_import_resolution"
]  # of constants, and names of packages without their sources
