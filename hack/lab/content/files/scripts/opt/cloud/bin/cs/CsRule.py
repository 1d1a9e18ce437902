"""One iptables rule as text: the table it is in and the words of -A."""


class CsRule:
    def __init__(self, table, words):
        self.table = table
        self.words = words

    def __eq__(self, other):
        return (self.table, self.words) == (other.table, other.words)

    def __hash__(self):
        return hash((self.table, self.words))
