"""What the fence changes in a component's config, and when it leaves it alone."""

from blackstart.fencing import credential_changes

NOW = {"BUS_PASSWORD": "new", "TLS_CERT": "certificate"}


def test_right_credentials_need_no_change():
    assert credential_changes(NOW, {**NOW, "PLATFORM": "acme"}) == {}


def test_a_renewed_certificate_alone_does_not_open_the_fence_again():
    assert credential_changes(NOW, {**NOW, "TLS_CERT": "older"}) == {}


def test_a_new_credential_brings_its_certificate_along():
    assert credential_changes(NOW, {"BUS_PASSWORD": "old", "TLS_CERT": "older"}) == NOW


def test_what_is_accepted_for_a_moment_is_taken_away_at_the_end():
    both = {**NOW, "OLD_BUS_PASSWORD": "old"}
    assert credential_changes(both, {"BUS_PASSWORD": "old", "TLS_CERT": "certificate"}) == {
        "BUS_PASSWORD": "new",
        "OLD_BUS_PASSWORD": "old",
    }
    assert credential_changes(both, both) == {}
    assert credential_changes(NOW, both) == {"OLD_BUS_PASSWORD": None}
