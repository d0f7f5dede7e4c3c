"""The schema documents that ship with the program.

They are installed as `pds/lexicons`; in a checkout they are the folder `lexicons` beside `pds`.
"""

from pathlib import Path

from pds.errors import ConfigError
from pds.protocol.data import InvalidData, Json, parse_json
from pds.protocol.lexicon.catalog import Catalog


def lexicon_folder() -> Path:
    """Return the folder of the documents.

    Raises: ConfigError when the installation lacks them.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "lexicons", package.parent / "lexicons"):
        if (folder / "com" / "atproto").is_dir():
            return folder
    raise ConfigError(f"the schema documents are missing from {package}: install again")


def load_catalog(folder: Path | None = None) -> Catalog:
    """Read every document below `folder`, by default the ones that ship with the program.

    Raises: ConfigError for a document that cannot be used: the server must not start with a
    schema missing.
    """
    documents: list[Json] = []
    for path in sorted((folder or lexicon_folder()).rglob("*.json")):
        try:
            documents.append(parse_json(path.read_bytes()))
        except InvalidData as error:
            raise ConfigError(f"{path}: {error}") from error
    catalog = Catalog.from_documents(documents)
    for name, reason in catalog.refused.items():
        raise ConfigError(f"schema document {name}: {reason}")
    return catalog
