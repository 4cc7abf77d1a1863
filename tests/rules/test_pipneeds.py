"""What a build asks pip for, read from the files of devstack and of projects."""

import base64
import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateprocess import GateError
from image import pipneeds
from image.pipneeds import PipSet, ProjectFiles

REQUIREMENTS = """\
# The order of packages is significant
pbr!=2.1.0,>=2.0.0 # Apache-2.0
  SQLAlchemy>=1.4.13  # MIT
oslo.db[mysql]>=1.0;python_version>='3.8' # comment
-e git+https://example.org/x#egg=x
-r other.txt
--extra-index-url https://example.org
git+https://example.org/y
z @ https://example.org/z.tar.gz
https://example.org/w.tar.gz
./here

plain
"""


def test_requirements_are_read_without_comments_options_and_links() -> None:
    assert pipneeds.parse_requirements(REQUIREMENTS) == [
        "pbr!=2.1.0,>=2.0.0", "SQLAlchemy>=1.4.13", "oslo.db[mysql]>=1.0;python_version>='3.8'", "plain"]


@pytest.mark.parametrize(
    ("requirements", "constraints", "expected"),
    [
        ("pbr>=2\n", "pbr===5.0\n", ["pbr===5.0"]),
        ("pbr>=2\npbr>=3\n", "pbr===5.0\n", ["pbr===5.0"]),
        ("pbr>=2\nsix\n", "pbr===5.0\n", ["pbr===5.0", "six"]),
        ("pbr>=2\n", "", []),
        ("pbr>=2\n", "# nothing\n", []),
        ("", "pbr===5.0\n", []),
        ("Oslo_DB>=1\n", "oslo.db===12.0\n", ["oslo.db===12.0"]),
        ("oslo-db\nzope..interface\n", "oslo.db===12.0\nzope_interface===6\n",
         ["oslo.db===12.0", "zope_interface===6"]),
        ("numpy\n", "numpy===1.2;python_version=='3.8'\nnumpy===2.0;python_version>='3.9'\n",
         ["numpy===1.2;python_version=='3.8'", "numpy===2.0;python_version>='3.9'"]),
        ("pywin32;sys_platform=='win32'\n", "pywin32===306\n", ["pywin32===306;sys_platform=='win32'"]),
        ("a ; sys_platform=='linux' # why\n", "a===1 ; python_version=='3.8'\n",
         ["a===1;(python_version=='3.8') and (sys_platform=='linux')"]),
        ("a;python_version=='3.8'\n", "a===1;python_version=='3.8'\n", ["a===1;python_version=='3.8'"]),
        ("b\nA\nc\n", "c===3\nb===2\nA===1\n", ["A===1", "b===2", "c===3"]),
        ("oslo.db[mysql]>=1\n", "oslo.db===12.0\n", ["oslo.db[mysql]===12.0"]),
        ("SQLAlchemy[asyncio,mypy] >=2;python_version>'3'\n", "sqlalchemy===2.1\n",
         ["sqlalchemy[asyncio,mypy]===2.1;python_version>'3'"]),
        ("oslo.db[mysql]\noslo.db\n", "oslo.db===12.0\n", ["oslo.db===12.0", "oslo.db[mysql]===12.0"]),
        ("six[x]\n", "pbr===5\n", ["six[x]"]),
    ],
    ids=["pin", "twice", "no pin", "no constraints", "no pins", "no requirements", "case", "signs", "two pins",
         "marker", "both markers", "same marker", "order", "extra", "extras and marker", "with and without",
         "extra without pin"],
)
def test_requirements_are_pinned_to_the_upper_constraints(
    requirements: str, constraints: str, expected: list[str]
) -> None:
    assert pipneeds.pinned(pipneeds.parse_requirements(requirements), constraints) == expected


def project(**files: str) -> ProjectFiles:
    return ProjectFiles("openstack/x", has_branch=True, files={
        {"requirements": "requirements.txt", "setup": "setup.py", "cfg": "setup.cfg", "toml": "pyproject.toml",
         "tox": "tox.ini"}[name]: text for name, text in files.items()})


@pytest.mark.parametrize(("files", "expected"), [
    ({"requirements": "pbr>=2\nsix # MIT\n"}, ["pbr>=2", "six"]),
    ({"cfg": "[options]\ninstall_requires =\n    a>=1\n    b\n"}, ["a>=1", "b"]),
    ({"toml": "[project]\ndependencies = ['a[x]>=1', 'b;x<\"4\"']\n"}, ["a[x]>=1", "b;x<\"4\""]),
    ({"toml": "[project]\ndependencies = 'a'\n"}, []),
    ({"toml": "[project\n", "cfg": "no section\n", "requirements": "a\n"}, ["a"]),
    ({}, []),
])
def test_what_a_project_requires(files: dict[str, str], expected: list[str]) -> None:
    assert pipneeds.requirements_of(project(**files)) == expected


@pytest.mark.parametrize(("files", "expected"), [
    ({"cfg": "[extras]\nmysql =\n  PyMySQL>=0.7.6 # MIT\nother =\n  a:python_version=='3.8'\n  b>=1:(x=='y')\n"},
     {"mysql": ["PyMySQL>=0.7.6"], "other": ["a;python_version=='3.8'", "b>=1;(x=='y')"]}),
    ({"cfg": "[options.extras_require]\nldap =\n    python-ldap>=3 ; python_version>'3'\n"},
     {"ldap": ["python-ldap>=3 ; python_version>'3'"]}),
    ({"toml": "[project.optional-dependencies]\nmysql = [\n 'PyMySQL>=0.7.6', # MIT\n]\nnone = []\n"},
     {"mysql": ["PyMySQL>=0.7.6"]}),
    ({"toml": "[project]\noptional-dependencies = 3\n"}, {}),
])
def test_what_the_extras_of_a_project_require(files: dict[str, str], expected: dict[str, list[str]]) -> None:
    assert pipneeds.extras_of(project(**files)) == expected


@pytest.mark.parametrize(("files", "expected"), [
    ({}, ["setuptools", "wheel"]),
    ({"toml": "[build-system]\nrequires = ['pbr>=6.1.1']\nbuild-backend = 'pbr.build'\n"}, ["pbr>=6.1.1"]),
    ({"toml": "[build-system]\nrequires = ['hatchling']\nbuild-backend = 'hatchling.build'\n"},
     ["hatchling", "editables"]),
    ({"setup": "setuptools.setup(\n    setup_requires=['pbr>=2.0.0',\n  \"six\"], pbr=True)\n"},
     ["setuptools", "wheel", "pbr>=2.0.0", "six"]),
    ({"cfg": "[options]\nsetup_requires = setuptools_scm\n"}, ["setuptools", "wheel", "setuptools_scm"]),
    ({"toml": "[build-system]\nrequires = ['sqlalchemy', 'setuptools>=42']\n"}, ["sqlalchemy", "setuptools>=42"]),
])
def test_what_it_takes_to_build_a_project(files: dict[str, str], expected: list[str]) -> None:
    assert pipneeds.build_requirements_of(project(**files)) == expected


SCRIPTS = {
    "inc/python": """function setup_devstack_virtualenv {
        pip_install -U pip setuptools[core]
    # pip_install never
    pip_install $clean_name
    pip_install $name[$extras]$version_constraints
    pip_install -e $dir
    pip_install $flags "$project_dir$extras"
""",
    "lib/tempest": "pip_install 'tox!=2.8.0,<4.0.0'\npip_install_gr testrepository; true\n"
                   "PIP_VIRTUAL_ENV=$PIP_VIRTUAL_ENV pip_install -U pbr # newest\n"
                   "tox -evenv-tempest -- pip install -c $tmp_u_c_m $TEMPEST_PLUGINS\n",
    "lib/databases/mysql": "MYSQL_DRIVER=${MYSQL_DRIVER:-PyMySQL}\npip_install_gr $MYSQL_DRIVER\n"
                           "pip_install ${TOP_DIR}/tools/dbcounter\n",
    "lib/glance": "glance_store_extras=()\nglance_store_extras=(\"cinder\" \"${glance_store_extras[@]}\")\n"
                  "glance_store_extras=(\"swift\" \"${glance_store_extras[@]}\")\n"
                  "pip_install_gr_extras glance-store $(join_extras \"${glance_store_extras[@]}\")\n",
    "stack.sh": "$DEST/bindep-venv/bin/pip install bindep\nsudo pip3 install -U devstack-tools==0.1.2\n"
                "pip download uwsgi -c $REQUIREMENTS_DIR/upper-constraints.txt\npip_install a \\\n    b\n"
                "pip_install git+https://example.org/x.git && pip_install ./here\n",
}


def test_what_devstack_s_scripts_install_by_name() -> None:
    assert pipneeds.words_of(SCRIPTS.values()) == (
        ["a", "b", "glance-store[cinder,swift]", "pbr", "pip", "PyMySQL", "setuptools[core]", "testrepository",
         "tox!=2.8.0,<4.0.0", "uwsgi"],
        ["bindep", "devstack-tools==0.1.2"])


@pytest.mark.parametrize(("script", "expected"), [
    ("tox -evenv -- tempest verify-config -e x\n", ["venv"]),
    ("    tox -revenv-tempest --notest\n  tox -r --notest -efull\n", ["full", "venv-tempest"]),
    ("cd x && tox -e py3,docs; tox -e=all\n# tox -e never\n", ["all", "docs", "py3"]),
    ("pip_install 'tox<4' -e x\nsudo ln -sf venv/bin/tox /usr/local/bin -e y\n", []),
    ("tox -e$ENVIRONMENT\ntox\ntox --notest\n", []),
])
def test_the_tox_environments_that_a_script_runs(script: str, expected: list[str]) -> None:
    assert pipneeds.tox_environments(script) == expected


TOX = """\
[base]
deps =
    -c{env:UPPER_CONSTRAINTS_FILE:https://example.org/master}
    -r{toxinidir}/requirements.txt
[testenv]
deps = {[base]deps}
    -r {toxinidir}/test-requirements.txt  # all of them
[testenv:all]
deps = {[base]deps}
[testenv:venv]
deps =
  -rrequirements.txt
  --requirement doc/requirements.txt
  autopep8>=2
[testenv:docs]
deps = {[testenv:venv]deps}
[testenv:bare]
deps =
[testenv:round]
deps = {[testenv:round]deps}
    {[testenv:about]deps}
    {[testenv:about]deps}
[testenv:about]
deps = {[testenv:round]deps}
    {[testenv:round]deps}
    {[testenv:about]deps}
"""


@pytest.mark.parametrize(("environment", "expected"), [
    ("all", ["a>=1"]), ("venv", ["a>=1", "c", "autopep8>=2"]), ("docs", ["a>=1", "c", "autopep8>=2"]),
    ("elsewhere", ["a>=1", "b"]), ("bare", []), ("round", []),
])
def test_what_tox_installs_into_an_environment(environment: str, expected: list[str]) -> None:
    tempest = ProjectFiles("openstack/tempest", False, {
        "requirements.txt": "a>=1\n", "test-requirements.txt": "b\n", "doc/requirements.txt": "c\n", "tox.ini": TOX})
    assert pipneeds.tox_requirements_of(tempest, [environment]) == expected


@pytest.mark.parametrize(("has_branch", "constraints"), [(True, "stable/x"), (False, "master")])
def test_what_tox_installs_is_under_the_constraints_of_the_project(has_branch: bool, constraints: str) -> None:
    tempest = ProjectFiles("openstack/tempest", has_branch, {"tox.ini": TOX, "doc/requirements.txt": "sphinx\n"})
    nova = ProjectFiles("openstack/nova", True, {"tox.ini": TOX, "doc/requirements.txt": "never\n"})
    found = pipneeds.sets_of("stable/x", [nova, tempest], ([], []), toxes={"tempest": ["all", "venv"]})
    assert [one for one in found if one.name.startswith("what tox")] == [
        PipSet("what tox installs for openstack/tempest", ("autopep8>=2", "sphinx"), constraints)]


def test_a_build_finds_all_that_it_asks_for() -> None:
    nova = ProjectFiles("openstack/nova", True, {
        "requirements.txt": "oslo.db[mysql]\n", "setup.cfg": "[extras]\nosprofiler =\n  osprofiler\n",
        "pyproject.toml": "[build-system]\nrequires = ['pbr>=6']\n", "tox.ini": "deps = -c{env:TOX_CONSTRAINTS_FILE}"})
    tempest = ProjectFiles("openstack/tempest", False, {
        "requirements.txt": "testtools\n", "tox.ini": "constraints = x"})
    images = ProjectFiles("openstack/os-test-images", False, {"requirements.txt": "pyyaml\n", "tox.ini": "deps = -rx"})
    counter = ProjectFiles("tools/dbcounter", True, {"pyproject.toml": "[build-system]\nrequires = ['sqlalchemy']\n"})
    found = pipneeds.sets_of("stable/x", [nova, tempest, images], (["tox", "tox<4", "six"], ["bindep"]), [counter])
    assert found == [
        PipSet("what projects require", ("oslo.db[mysql]",), "stable/x"),
        PipSet("what devstack installs", ("six",), "stable/x"),
        PipSet("what projects without this branch require", ("pyyaml", "testtools"), "master"),
        PipSet("what devstack installs", ("tox",), "stable/x"),
        PipSet("what devstack installs", ("tox<4",), "stable/x"),
        PipSet("what devstack installs", ("bindep",), ""),
        PipSet("what openstack/os-test-images requires", ("pyyaml",), ""),
        PipSet("pip's own tools", ("pip",), ""),
        PipSet("pip's own tools", ("setuptools",), ""),
        PipSet("pip's own tools", ("wheel",), ""),
        PipSet("what builds openstack/nova", ("pbr>=6",), ""),
        PipSet("what builds openstack/tempest", ("setuptools", "wheel"), ""),
        PipSet("what builds tools/dbcounter", ("sqlalchemy",), ""),
        PipSet("extras of openstack/nova", ("osprofiler",), "stable/x"),
    ]


def test_the_list_of_an_old_devstack_stands_for_what_projects_require() -> None:
    nova = ProjectFiles("openstack/nova", True, {"requirements.txt": "a\n"})
    assert pipneeds.sets_of("stable/x", [nova], ([], []), listed=["b"])[0] == PipSet("what devstack lists", ("b",),
                                                                                     "stable/x")


def pack(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode())).decode()


def test_files_of_projects_come_as_they_were() -> None:
    content = base64.b64encode("pbr # ö\n".encode()).decode()
    assert pipneeds.unpack(pack(f"a/b branch requirements.txt {content}\na/b branch tox.ini {content}\n"
                                f"c default setup.py {content}\n")) == [
        ProjectFiles("a/b", True, {"requirements.txt": "pbr # ö\n", "tox.ini": "pbr # ö\n"}),
        ProjectFiles("c", False, {"setup.py": "pbr # ö\n"})]


@pytest.mark.parametrize("blob", ["x", "####", base64.b64encode(b"no gzip").decode(), pack("three words only\n"),
                                  pack("x\n" * 5)[:-8]],
                         ids=["short", "no base64", "no gzip", "three words", "cut off"])
def test_what_is_no_such_list_is_an_error(blob: str) -> None:
    with pytest.raises(GateError) as caught:
        pipneeds.unpack(blob)
    assert str(caught.value).startswith("the files of projects could not be read: ")


@given(text=st.text())
def test_no_file_is_too_strange(text: str) -> None:
    strange = project(requirements=text, setup=text, cfg=text, toml=text, tox=text)
    pipneeds.words_of([text])
    pipneeds.tox_environments(text)
    pipneeds.tox_requirements_of(strange, [text])
    for one in pipneeds.sets_of("master", [strange], ([], [])):
        assert all("\n" not in requirement for requirement in one.requirements)
