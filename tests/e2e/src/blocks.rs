//! The fenced blocks of a page of documentation.

/// A fenced block.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Block {
    /// What follows the opening fence: `sql`, `sh`, `rust`.
    pub language: String,
    /// The line of the opening fence, from 1.
    pub line: usize,
    /// What has to be there for the block to work, from a comment `<!-- before: … -->` on the line above it, which readers do not see.
    pub before: Option<String>,
    /// The block.
    pub text: String,
}

/// The fenced blocks of a page, in its order.
pub fn blocks(page: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut open: Option<Block> = None;
    let mut last = "";
    for (index, line) in page.lines().enumerate() {
        match (line.trim().strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(language), None) => {
                let before = last
                    .trim()
                    .strip_prefix("<!-- before: ")
                    .and_then(|comment| comment.strip_suffix(" -->"))
                    .map(str::to_owned);
                open = Some(Block {
                    language: language.to_owned(),
                    line: index + 1,
                    before,
                    text: String::new(),
                });
            }
            (None, Some(block)) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
        last = line;
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::Block;
    use super::blocks;

    #[test]
    fn a_block_knows_its_language_its_line_and_what_comes_before() {
        let page = "text\n\n<!-- before: CREATE TABLE t () -->\n```sql\nTABLE t;\n```\n\n```sh\necho\n```\n";
        let block = |language: &str, line, before: Option<&str>, text: &str| Block {
            language: language.to_owned(),
            line,
            before: before.map(str::to_owned),
            text: text.to_owned(),
        };
        assert_eq!(
            blocks(page),
            [block("sql", 4, Some("CREATE TABLE t ()"), "TABLE t;\n"), block("sh", 8, None, "echo\n")]
        );
    }
}
