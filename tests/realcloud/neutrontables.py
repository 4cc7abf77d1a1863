"""Make Neutron's tables from its models: its migrations change constraints, which SQLite cannot."""

import sqlalchemy
from neutron.db.migration.models import head
from neutron_lib.db import model_base

from tests.realcloud.configuration import database

if __name__ == "__main__":
    assert head  # importing it imports all models
    model_base.BASEV2.metadata.create_all(sqlalchemy.create_engine(database("neutron")))
