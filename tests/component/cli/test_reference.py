from scripts.docs import REFERENCE, broken_links, reference


def test_the_reference_of_the_commands_is_what_they_say_of_themselves():
    assert REFERENCE.read_text() == reference(), "run: make docs"


def test_no_link_between_the_documents_is_broken():
    assert broken_links() == []
