//! W3C Trace Context, the header `traceparent`: <https://www.w3.org/TR/trace-context/>.

/// Whether a text is one: `version-trace-parent-flags`, in lower hexadecimal digits, neither id zero. A later version than 00 may go on behind
/// another dash.
pub fn is_traceparent(text: &str) -> bool {
    let mut parts = text.splitn(5, '-');
    let mut hex = |digits: usize| {
        let part = parts.next().unwrap_or_default();
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (part.len() == digits && part.bytes().all(is_hex)).then_some(part)
    };
    let (Some(version), Some(trace), Some(parent), Some(_flags)) = (hex(2), hex(32), hex(16), hex(2)) else {
        return false;
    };
    let zero = |id: &str| id.bytes().all(|byte| byte == b'0');
    version != "ff" && !zero(trace) && !zero(parent) && (parts.next().is_none() || version != "00")
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_the_recommendation_shows_is_accepted() {
        assert!(is_traceparent(EXAMPLE));
        assert!(is_traceparent(&EXAMPLE.replacen("00", "01", 1)));
        assert!(is_traceparent(&format!("cc{}-what-comes-later", &EXAMPLE[2..])));
    }

    #[test]
    fn what_it_forbids_is_not() {
        for wrong in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            " 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319ä-b7ad6b7169203331-01",
        ] {
            assert!(!is_traceparent(wrong), "{wrong}");
        }
        // Every single character counts.
        for at in 0..EXAMPLE.len() {
            let mut wrong = EXAMPLE.to_owned();
            wrong.replace_range(at..=at, "g");
            assert!(!is_traceparent(&wrong), "{wrong}");
        }
    }
}
