//! The version of this library beside the version of the extension in a database: they differ between the installation of new files
//! and `ALTER EXTENSION pg_task UPDATE`.

use pgrx::pg_sys::Datum;

use crate::call::Call;
use crate::call::sql_function;
use crate::error::Error;
use crate::spi;
use crate::spi::Statement;

/// This library's version.
pub const LIBRARY: &str = env!("CARGO_PKG_VERSION");

thread_local! {
    static EXTENSION: Statement = const { Statement::new(
        c"SELECT e.extversion FROM pg_catalog.pg_extension AS e WHERE e.extname OPERATOR(pg_catalog.=) 'pg_task'::pg_catalog.name",
        &[],
    ) };
}

/// What to tell when the extension in this database is of another version. Called inside a transaction.
pub fn difference() -> Option<String> {
    let extension =
        spi::connected(|spi| EXTENSION.with(|statement| statement.run(spi, &[], true)).text(0, 1))?;
    (extension != LIBRARY).then(|| {
        format!("the extension is version {extension}, the library {LIBRARY}: run ALTER EXTENSION pg_task UPDATE in this database")
    })
}

fn library_version(_call: &mut Call) -> Result<Option<Datum>, Error> {
    Ok(spi::text(LIBRARY))
}
sql_function!(
    "library_version_wrapper",
    "pg_finfo_library_version_wrapper",
    library_version,
    "library_version() RETURNS text"
);
