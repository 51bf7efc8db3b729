//! The dialect of PostgreSQL: what is left out of shared statements, which are in SQLite's.

/// Returns a statement as PostgreSQL understands it.
pub(super) fn in_dialect(sql: &str) -> String {
    without_indexes(sql).replace('?', "$")
}

/// Returns a query without the names of indexes that SQLite has to use.
pub(super) fn without_indexes(sql: &str) -> String {
    let mut parts = sql.split(" INDEXED BY ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |sql, part| {
        let name = part.find(|c: char| c != '_' && !c.is_alphanumeric());
        sql + &part[name.unwrap_or(part.len())..]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_keeps_all_but_its_indexes_and_its_placeholders() {
        for (shared, own) in [
            ("SELECT 1", "SELECT 1"),
            (
                "a = ?1 AND b = ?12 OR c = $2",
                "a = $1 AND b = $12 OR c = $2",
            ),
            (
                "SELECT 1 FROM orders INDEXED BY orders_by_status WHERE seq > ?1",
                "SELECT 1 FROM orders WHERE seq > $1",
            ),
            (
                "(SELECT 1 FROM a INDEXED BY by_1) UNION ALL (SELECT 1 FROM b INDEXED BY by_2)",
                "(SELECT 1 FROM a) UNION ALL (SELECT 1 FROM b)",
            ),
            ("DELETE FROM a INDEXED BY by_1", "DELETE FROM a"),
        ] {
            assert_eq!(in_dialect(shared), own);
            assert_eq!(in_dialect(own), own);
        }
    }
}
