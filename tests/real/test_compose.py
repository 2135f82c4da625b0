"""The drop-in, brought up by compose with the commands that stand in its file. What Synapse does behind it: `test_synapse.py`."""

import json

from conftest import wait_for


def test_the_commands_of_the_file_brought_it_up_and_git_changes_it(stack):
    assert json.loads(stack.ask("example.org", "/.well-known/matrix/server")[1]) == {"m.server": f"matrix.example.org:{stack.https}"}
    assert stack.ask("matrix.example.org", "/_synapse/admin/v1/server_version")[0] == 404
    assert stack.ask("jwt.matrixrtc.example.org", "/healthz")[0] == 200
    assert stack.ask("matrixrtc.example.org", "/rtc/v1/validate")[0] == 401

    # Git replaces the file, and the action says `up` again.
    before = stack.edge()
    new = stack.folder / "vestibule.toml.new"
    new.write_text((stack.folder / "vestibule.toml").read_text() + '\n[sites."new.example.org".routes]\n"/" = { respond = "new" }\n')
    new.rename(stack.folder / "vestibule.toml")
    stack.must("up", "--detach")
    wait_for("the new site", lambda: stack.ask("new.example.org", "/") == (200, b"new"), 30)
    after = stack.edge()
    assert (after["Id"], after["State"]["StartedAt"]) == (before["Id"], before["State"]["StartedAt"])
    assert stack.log().count('"started"') == 1
